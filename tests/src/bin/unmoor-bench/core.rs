//! What each half of the relay does to every byte, on one core, without sockets.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use migrate::{Destination, DestinationAction, Outputs, Source};
use qemu_stream::test_support::StreamBuilder;
use qemu_stream::{Event, Parser};
use serde::{Deserialize, Serialize};
use wire::{Decoder, Message, Preamble, put_control};

use crate::medians::median;

const PAGE: usize = 4096;
/// Large enough not to stay in any cache.
const STREAM_PAGES: usize = 64 << 10;
/// As the relay reads.
const READ: usize = 256 << 10;

/// Speeds in GB/s, and their ratios to copying memory.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Core {
    pub(crate) source_half_gb_per_s: f64,
    pub(crate) source_half_to_memcpy: f64,
    pub(crate) destination_half_gb_per_s: f64,
    pub(crate) destination_half_to_memcpy: f64,
    pub(crate) memcpy_gb_per_s: f64,
    stream_bytes: usize,
}

/// Medians of five.
pub(crate) fn measure() -> Result<Core> {
    let stream = stream();
    let (mut source, mut destination, mut copy) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        copy.push(gigabytes(stream.len(), memcpy(&stream)));
        let (frames, elapsed) = source_half(&stream)?;
        source.push(gigabytes(stream.len(), elapsed));
        destination.push(gigabytes(stream.len(), destination_half(&frames)?));
    }
    let [source, destination, copy] =
        [source, destination, copy].map(|all| median(all).unwrap_or(f64::NAN));
    Ok(Core {
        source_half_gb_per_s: source,
        source_half_to_memcpy: source / copy,
        destination_half_gb_per_s: destination,
        destination_half_to_memcpy: destination / copy,
        memcpy_gb_per_s: copy,
        stream_bytes: stream.len(),
    })
}

fn gigabytes(bytes: usize, elapsed: Duration) -> f64 {
    bytes as f64 / 1e9 / elapsed.as_secs_f64()
}

/// A stream of pages that differ from each other.
fn stream() -> Vec<u8> {
    let mut builder = StreamBuilder::new("pc-q35-10.0");
    builder.ram_start(&[StreamBuilder::block("pc.ram", (STREAM_PAGES * PAGE) as u64)]);
    let mut page = vec![0x5a; PAGE];
    for part in 0..STREAM_PAGES / 64 {
        builder.part(|builder| {
            for index in part * 64..(part + 1) * 64 {
                page[..8].copy_from_slice(&index.to_le_bytes());
                builder.page(0, (index * PAGE) as u64, &page);
            }
        });
    }
    builder.end(|_| {});
    builder.device(4, "timer", &[1; 100]);
    builder.finish()
}

fn memcpy(stream: &[u8]) -> Duration {
    let mut buffer = vec![1; stream.len()];
    let begun = Instant::now();
    buffer.copy_from_slice(black_box(stream));
    black_box(&buffer);
    begun.elapsed()
}

/// Yields the frames, as the relay's loop would send them, and the time that they took.
fn source_half(stream: &[u8]) -> Result<(Vec<Vec<u8>>, Duration)> {
    let mut source = Source::new([1; 16], 7);
    let mut out = Vec::new();
    source.greet("bench", "{}".into(), &mut out);
    let mut frames = vec![std::mem::take(&mut out)];
    let mut answer = Vec::new();
    Preamble::OURS.put(&mut answer);
    let accept = wire::Accept {
        software: "bench".into(),
        uses: wire::Capabilities::OURS,
        vm_facts: "{}".into(),
    };
    put_control(&Message::Accept(accept), &mut answer);
    let mut decoder = Decoder::new();
    let mut at = 0;
    while let Some((used, frame)) = decoder.next(&answer[at..])? {
        source.frame(frame, &mut out)?;
        at += used;
    }
    let mut parser = Parser::new();
    let mut elapsed = Duration::ZERO;
    let (mut from, mut to) = (0, 0);
    while to < stream.len() {
        to = (to + READ).min(stream.len());
        let begun = Instant::now();
        while let Some((used, event)) = parser.next(&stream[from..to])? {
            source.event(&event, parser.blocks(), parser.page_size(), &mut out)?;
            from += used;
            if matches!(event, Event::End { .. }) {
                break;
            }
        }
        source.flush(&mut out);
        elapsed += begun.elapsed();
        // The buffer is used again, as after writing it to a socket.
        frames.push(out.clone());
        out.clear();
    }
    ensure!(
        source.digest().pages == STREAM_PAGES as u64,
        "pages are missing"
    );
    Ok((frames, elapsed))
}

fn destination_half(frames: &[Vec<u8>]) -> Result<Duration> {
    let mut destination = Destination::new();
    let mut decoder = Decoder::new();
    let mut peer = Vec::new();
    let mut qemu = Vec::with_capacity(READ + (64 << 10));
    let mut elapsed = Duration::ZERO;
    for bytes in frames {
        let begun = Instant::now();
        let mut at = 0;
        while let Some((used, frame)) = decoder.next(&bytes[at..])? {
            let mut outputs = Outputs {
                peer: &mut peer,
                qemu: &mut qemu,
            };
            destination.frame(&frame, &mut outputs)?;
            at += used;
            while let Some(action) = destination.next_action() {
                if let DestinationAction::Admit(_) = action {
                    destination.accept("bench", "{}".into(), 1 << 40, &mut peer);
                }
            }
        }
        destination.flush(&mut qemu);
        elapsed += begun.elapsed();
        black_box(&qemu);
        qemu.clear();
    }
    ensure!(
        destination.pages() == STREAM_PAGES as u64,
        "pages are missing"
    );
    Ok(elapsed)
}
