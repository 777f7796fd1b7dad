//! What the fuzz targets and the property tests run.

use crate::return_path::ReturnPathParser;
use crate::test_support::parse_in_steps;
use crate::{Emitter, Event, ParseError};

/// Any bytes may come from QEMU, and in any pieces: the events must not depend on the pieces, and
/// emitting them must reproduce the bytes.
pub fn stream(data: &[u8]) {
    let whole = digest(data, data.len());
    for step in [1, 3, 4096] {
        assert_eq!(whole, digest(data, step), "pieces of {step} bytes");
    }
}

/// What a parse came to, comparable between different pieces of the same bytes.
#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    /// Debug form of the events, raw pieces joined.
    events: Vec<String>,
    error: Option<ParseError>,
}

fn digest(data: &[u8], step: usize) -> Parsed {
    let mut emitter = Emitter::new();
    let mut emitted = Vec::new();
    let mut events = Vec::new();
    let mut raw: Vec<u8> = Vec::new();
    let (consumed, result) = parse_in_steps(data, step, |event, parser| {
        if matches!(event, Event::RamBlocks) {
            emitter.set_blocks(parser.blocks());
        }
        emitter.emit(event, &mut emitted);
        match event {
            Event::Device(bytes) | Event::EarlyFull { raw: bytes, .. } => {
                raw.extend_from_slice(bytes);
            }
            other => {
                if !raw.is_empty() {
                    events.push(format!("raw {raw:x?}"));
                    raw.clear();
                }
                events.push(format!("{other:x?}"));
            }
        }
    });
    assert_eq!(
        emitted,
        &data[..consumed],
        "emitting does not reproduce the bytes"
    );
    let error = result.err();
    if error.is_none() && !raw.is_empty() {
        events.push(format!("raw {raw:x?}"));
    }
    // Where an error is noticed within raw bytes depends on how much of them has arrived.
    Parsed { events, error }
}

/// Any bytes may come back from a QEMU; what parses must emit to the same bytes.
pub fn return_path(data: &[u8]) {
    let mut parser = ReturnPathParser::new();
    let mut at = 0;
    while let Ok(Some((used, message))) = parser.next(&data[at..]) {
        let mut emitted = Vec::new();
        message.put(&mut emitted);
        assert_eq!(emitted, &data[at..at + used]);
        assert!(ReturnPathParser::new().next(&data[at..at + used - 1]) == Ok(None));
        at += used;
    }
}
