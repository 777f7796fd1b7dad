//! Where the device part ends: near misses of every kind, against a plain reference.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "small test data, and a panic is how a test fails"
)]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use qemu_stream::test_support::{StreamBuilder, parse_in_steps};
use qemu_stream::{Event, MAX_VMDESC, ParseError, Parser, fuzz_entry};

/// A stream up to the device part.
fn head() -> Vec<u8> {
    StreamBuilder::new("pc-q35-10.0")
        .ram_start(&[StreamBuilder::block("pc.ram", 64 << 12)])
        .end(|_| {})
        .take()
}

/// What looks like a description of the given length.
fn candidate(length: u32, text: &[u8]) -> Vec<u8> {
    [&[0, 6][..], &length.to_be_bytes(), text].concat()
}

/// The device bytes and the description, or the error.
type Outcome = Result<(Vec<u8>, Option<Vec<u8>>), ParseError>;

fn outcome(tail: &[u8], step: usize) -> Outcome {
    let bytes = [&head()[..], tail].concat();
    let (mut device, mut description) = (Vec::new(), None);
    let (_, result) = parse_in_steps(&bytes, step, |event, _| match event {
        Event::Device(raw) => device.extend_from_slice(raw),
        Event::End { vmdesc } => description = vmdesc.map(<[u8]>::to_vec),
        _ => {}
    });
    result.map(|()| (device, description))
}

/// The same decision with all bytes at hand, told as plainly as possible.
fn reference(tail: &[u8]) -> Outcome {
    let base = head().len() as u64;
    for at in 0..tail.len() {
        let rest = &tail[at..];
        if rest.len() < 7 || rest[..2] != [0, 6] {
            continue;
        }
        let length = u32::from_be_bytes(rest[2..6].try_into().unwrap()) as usize;
        let Some(text) = rest.get(6..6 + length) else {
            continue;
        };
        let is_end = (1..=MAX_VMDESC).contains(&length)
            && text.starts_with(b"{")
            && text.ends_with(b"}")
            && std::str::from_utf8(text).is_ok_and(|text| text.contains("\"devices\""));
        if is_end && rest.len() > 6 + length {
            let offset = base + (at + 6 + length) as u64;
            return Err(ParseError::TrailingData { offset });
        }
        if is_end {
            return Ok((tail[..at].to_vec(), Some(text.to_vec())));
        }
    }
    if let Some(device) = tail.strip_suffix(&[0, 6, 0, 0, 0, 0]) {
        return Ok((device.to_vec(), Some(Vec::new())));
    }
    if let Some(device) = tail.strip_suffix(&[0]) {
        return Ok((device.to_vec(), None));
    }
    Err(ParseError::Truncated {
        offset: base + tail.len() as u64,
        part: "the device state",
    })
}

/// Pieces of device state that are most of what could go wrong.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![0]),
        Just(vec![0, 6]),
        Just(vec![0, 6, 0, 0]),
        Just(vec![0, 6, 0, 0, 0, 0]),
        Just(b"}".to_vec()),
        Just(b"\"devices\"".to_vec()),
        Just("ä\u{1f600}".as_bytes().to_vec()),
        // The second half of a character.
        Just(vec![0xa4]),
        (1u32..60).prop_map(|length| candidate(length, b"{")),
        Just(candidate(0x00ff_ffff, b"{")),
        Just(candidate(0x0100_0000, b"{")),
        Just(candidate(0x0100_0001, b"{")),
        prop::collection::vec(any::<u8>(), 0..6),
    ]
}

fn ending() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(candidate(14, b"{\"devices\":[]}")),
        1 => Just(vec![0]),
        1 => Just(vec![0, 6, 0, 0, 0, 0]),
        1 => Just(vec![]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_end_is_where_the_reference_sees_it(
        pieces in prop::collection::vec(piece(), 0..30),
        ending in ending(),
        step in 1usize..64,
    ) {
        let tail = [&[4][..], &pieces.concat(), &ending].concat();
        let expected = reference(&tail);
        prop_assert_eq!(&outcome(&tail, step), &expected);
        prop_assert_eq!(&outcome(&tail, tail.len()), &expected);
    }
}

/// Seven bytes of device state must not keep a VM from being moved.
#[test]
fn a_near_miss_longer_than_what_is_left_does_not_hide_the_end() {
    let body = [candidate(0x00ff_ffff, b"{"), vec![1, 2]].concat();
    let bytes = StreamBuilder::new("pc-q35-10.0")
        .ram_start(&[StreamBuilder::block("pc.ram", 1 << 16)])
        .end(|_| {})
        .device(5, "rtc", &body)
        .finish();
    let mut end = None;
    let (used, result) = parse_in_steps(&bytes, 64, |event, _| {
        if let Event::End { vmdesc } = event {
            end = vmdesc.map(<[u8]>::len);
        }
    });
    assert_eq!((used, result), (bytes.len(), Ok(())));
    assert!(end.is_some_and(|length| length > 0));
    fuzz_entry::stream(&bytes);
}

/// Who does not tell of the closing gets an error, not half a stream.
#[test]
fn without_close_a_held_back_end_is_an_error() {
    let tail = [
        &[4][..],
        &candidate(0x00ff_ffff, b"{"),
        &candidate(13, b"{\"devices\":1}"),
    ];
    let bytes = [&head()[..], &tail.concat()].concat();
    let mut parser = Parser::new();
    let mut at = 0;
    while let Some((used, event)) = parser.next(&bytes[at..]).unwrap() {
        assert!(!matches!(event, Event::End { .. }));
        at += used;
    }
    assert!(matches!(
        parser.finish(&bytes[at..]),
        Err(ParseError::Truncated { .. })
    ));
}

/// The footer of section 6 and the EOF byte read like the beginning of a description.
#[test]
fn a_suppressed_description_after_section_six() {
    let tail = [4, 0, 0, 0, 6, 1, b'a', 0x7e, 0, 0, 0, 6, 0];
    let device = tail[..tail.len() - 1].to_vec();
    for step in [1, 2, tail.len()] {
        assert_eq!(outcome(&tail, step), Ok((device.clone(), None)));
    }
}

#[test]
fn offsets_count_what_finish_took() {
    let bytes = [&head()[..], &[4, 1, 0]].concat();
    let mut parser = Parser::new();
    let mut at = 0;
    while let Some((used, _)) = parser.next(&bytes[at..]).unwrap() {
        at += used;
    }
    parser.finish(&bytes[at..]).unwrap();
    assert_eq!(parser.offset(), bytes.len() as u64);
}

/// Every seventh byte begins a description, and all of them end with the same brace: checking
/// each from its beginning would take a minute for these 4 MiB, and hours for some more.
#[test]
fn overlapping_near_misses_take_linear_time() {
    const LENGTH: usize = 4 << 20;
    let mut body = Vec::with_capacity(LENGTH);
    while body.len() + 7 < LENGTH {
        let length = (LENGTH - body.len() - 6) as u32;
        if length.to_be_bytes().is_ascii() {
            body.extend(candidate(length, b"{"));
        } else {
            body.push(b'x');
        }
    }
    body.resize(LENGTH - 1, b'x');
    body.push(b'}');
    let bytes = [&head()[..], &[4], &body, &candidate(13, b"{\"devices\":1}")].concat();
    let begun = Instant::now();
    let (used, result) = parse_in_steps(&bytes, 1 << 20, |_, _| {});
    assert_eq!((used, result), (bytes.len(), Ok(())));
    assert!(begun.elapsed() < Duration::from_secs(10));
}
