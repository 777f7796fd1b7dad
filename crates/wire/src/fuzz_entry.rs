//! What the fuzz target and the property tests run: any bytes at all may come from a peer.

use crate::{
    Assembler, CHUNK_HEADER, CHUNK_MAX, Decoder, FRAME_HEADER, Frame, MAX_PAYLOAD, WireError,
};

/// Decodes `data` whole and in small pieces; both must agree, no frame may ask for more than the
/// protocol's bound, and nothing may panic.
pub fn decode(data: &[u8]) {
    let whole = run(data, data.len().max(1));
    for step in [1, 7, 4097] {
        assert_eq!(
            whole,
            run(data, step),
            "chunks of {step} decode differently"
        );
    }
}

/// Puts a stream together from chunks; no more may be kept or yielded than has come.
pub fn assemble(data: &[u8]) {
    let mut assembler = Assembler::new(0, 1 << 20);
    let mut stream = Vec::new();
    let mut at = 0;
    while let Ok(Some(used)) = assembler.take(&data[at..], &mut stream) {
        assert!((CHUNK_HEADER + 1..=CHUNK_HEADER + CHUNK_MAX).contains(&used));
        at += used;
        assert!(stream.len() <= at);
        assert_eq!(assembler.position(), stream.len() as u64);
    }
}

/// Decodes with input growing by `step` bytes at a time; the frames (as text) and the error.
fn run(data: &[u8], step: usize) -> (Vec<String>, Option<WireError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let (mut from, mut to) = (0, 0);
    loop {
        match decoder.next(&data[from..to]) {
            Ok(Some((used, frame))) => {
                assert!(used > 0 && used <= to - from);
                frames.push(describe(&frame));
                from += used;
            }
            Ok(None) if to < data.len() => {
                assert!(to - from < FRAME_HEADER + MAX_PAYLOAD);
                to = (to + step).min(data.len());
            }
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

fn describe(frame: &Frame<'_>) -> String {
    match frame {
        Frame::Pages(pages) => match pages.iter(4096) {
            Ok(pages) => format!(
                "pages {:?}",
                pages
                    .map(|(index, page)| (index, page.len()))
                    .collect::<Vec<_>>()
            ),
            Err(error) => format!("pages {error}"),
        },
        Frame::Zeros(zeros) => format!("zeros {:?}", zeros.iter().collect::<Vec<_>>()),
        other => format!("{other:?}"),
    }
}
